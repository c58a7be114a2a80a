"""Floor 3: guards, and models defended by them."""
