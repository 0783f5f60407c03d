"""Language models: loading, chat templates, forward passes, several models in one memory."""
