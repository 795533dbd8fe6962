"""The student as a product: to the Hugging Face hub, and to other engines' formats."""
