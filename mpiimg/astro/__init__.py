"""Sky surveys: exposures, patches of sky, and the steps from frames to a catalogue."""
