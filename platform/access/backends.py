"""Who may log in: active accounts with a password."""

from django.contrib.auth.backends import ModelBackend


class AccountBackend(ModelBackend):
    """Django's check of name and password; permissions and groups do not exist here."""

    def get_user_permissions(self, user_obj: object, obj: object = None) -> set[str]:
        return set()

    def get_group_permissions(self, user_obj: object, obj: object = None) -> set[str]:
        return set()
