"""The shelf of methods: five adaptation strategies and the baselines. One method is one file; its name is the file's name."""
