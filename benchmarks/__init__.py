"""Speed and memory as ratios against a peer, measured side by side in one run."""
