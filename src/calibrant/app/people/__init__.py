"""Sessions at the terminal: people who compare, label and attack."""
