"""Logging in and out."""

from django.contrib.auth.forms import AuthenticationForm
from django.contrib.auth.views import LoginView, LogoutView
from django.http import HttpResponse

import audit.services
from access.models import Account


class Login(LoginView):
    template_name = "access/login.html"
    redirect_authenticated_user = True

    def form_valid(self, form: AuthenticationForm) -> HttpResponse:
        name = form.get_user().get_username()
        audit.services.record("access.login", message=f"{name} logged in", actor=name)
        return super().form_valid(form)

    def form_invalid(self, form: AuthenticationForm) -> HttpResponse:
        # Only the name of an account that exists is kept: people type passwords into the wrong field, and
        # what is in the audit log stays there.
        tried = Account.objects.filter(username=str(form.data.get("username", ""))[:150]).first()
        name = tried.username if tried else ""
        audit.services.record(
            "access.login_failed", message="a login failed", actor=name, level="warning", data={"known": bool(tried)}
        )
        return super().form_invalid(form)


class Logout(LogoutView):
    http_method_names = ["post", "options"]
