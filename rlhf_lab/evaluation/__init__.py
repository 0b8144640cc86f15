"""Is it better? Text, policies and reward models measured, each number with an interval."""
