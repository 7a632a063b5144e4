"""Array functions under the networks and the step: the only place that chooses a form by shape or platform."""
