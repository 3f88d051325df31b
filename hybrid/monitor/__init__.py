"""What is going on: figures read from the other rooms, which know nothing of it."""
