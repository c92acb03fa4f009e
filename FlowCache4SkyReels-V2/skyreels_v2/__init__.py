"""SkyReels-V2 with FlowCache."""
