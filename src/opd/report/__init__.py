"""The report: recording of rollouts token by token during training, and the pages that show runs."""
