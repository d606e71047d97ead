"""What people ask and do, for the command line and for HTTP alike."""
