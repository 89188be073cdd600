"""What everything else stands on: errors, files, locks, run directories, the device, signals, plots' style."""
