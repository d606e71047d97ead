"""The tables: migrations, upgrade, removal and grants."""
