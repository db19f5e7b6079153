"""Interactive widgets: state -> pure select -> figure. No torch in here."""
