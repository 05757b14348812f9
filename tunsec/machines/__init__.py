"""Verbs over time, pure: state, event and now in; state and actions out."""
