"""Scripts of the repository; nothing of the product imports them."""
