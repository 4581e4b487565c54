from core.rewrapping import SealedColumn, register, settings_rewrap

register(SealedColumn("settings of hooks", "operations.Hook", "sealed", settings_rewrap("hook")))
