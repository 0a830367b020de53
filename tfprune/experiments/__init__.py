"""Studies: commands, stages and their store, statistics, tables and figures."""
