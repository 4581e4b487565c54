from core.rewrapping import SealedColumn, register, settings_rewrap

register(SealedColumn("settings of hooks", "operations.Hook", "sealed", settings_rewrap("hook")))
register(SealedColumn("settings of channels", "operations.Channel", "sealed", settings_rewrap("channel")))
