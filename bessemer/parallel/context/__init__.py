"""The context axis: the columns of every row spread over ranks, and attention across them."""
