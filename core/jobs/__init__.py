"""The declarations of plugins: jobs, schedules, arguments, settings and hooks; and the registry of all declarations."""
