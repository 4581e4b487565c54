from django.urls import path

from access.views import Login, Logout

app_name = "access"

urlpatterns = [
    path("login/", Login.as_view(), name="login"),
    path("logout/", Logout.as_view(), name="logout"),
]
