"""Were the tokens drawn from the law that is scored? A bet against it that can hardly ever win if they were."""
