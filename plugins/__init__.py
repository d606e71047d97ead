"""The job packages kept in this repository; each plugs in through its own entry point, as anyone's does."""
