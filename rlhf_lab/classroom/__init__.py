"""For readers: figures, reports, course material, widgets, checks of exercises, and the bug clinic."""
