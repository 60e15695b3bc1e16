"""Local models: GGUF files in the own folder, from the default wheel, a hub, or the store of Ollama."""
