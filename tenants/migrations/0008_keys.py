from typing import Any, ClassVar

from django.db import migrations


class Migration(migrations.Migration):
    dependencies: ClassVar[list[Any]] = [("tenants", "0007_retention")]
    operations: ClassVar[list[Any]] = []
