"""The catalogue, references, execution of techniques, and studies."""
