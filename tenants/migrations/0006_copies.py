from typing import Any, ClassVar

from django.db import migrations


class Migration(migrations.Migration):
    dependencies: ClassVar[list[Any]] = [("tenants", "0005_stores_and_time")]
    operations: ClassVar[list[Any]] = []
