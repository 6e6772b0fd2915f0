"""Routes outside the OpenAI API and feedback, one resource a module."""
