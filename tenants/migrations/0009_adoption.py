from typing import Any, ClassVar

from django.db import migrations


class Migration(migrations.Migration):
    dependencies: ClassVar[list[Any]] = [("tenants", "0008_keys")]
    operations: ClassVar[list[Any]] = []
