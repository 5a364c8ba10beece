"""The ground floor: errors, files, paths, configuration, manifests, processes. Knows nothing of models or assembly."""
