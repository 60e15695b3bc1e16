"""The subcommands of `velollm`, one module each: `configure` adds its arguments, `run` does the work."""
