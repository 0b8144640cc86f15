"""What `explore` shows: worlds small enough to solve at every drag, and the widget that is dragged."""
