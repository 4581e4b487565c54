from django.urls import path

from panel import views

app_name = "panel"

urlpatterns = [
    path("", views.tenants, name="tenants"),
    path("tenants/<slug:slug>/", views.tenant, name="tenant"),
]
