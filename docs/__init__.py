"""What writes the generated parts of the documentation. Not installed; run from the project's root (`make docs`)."""
