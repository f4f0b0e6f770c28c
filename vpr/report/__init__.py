"""What people look at: panels, plots, heat maps, the HTML report."""
