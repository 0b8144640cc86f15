"""Language models, reward models, policies and value functions: what is loaded, saved and scored."""
