"""What a run says of itself: events, status, watchdog, printed plans."""
