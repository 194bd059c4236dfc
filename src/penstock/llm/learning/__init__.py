"""What a server has, estimated from what its answers tell, and from what it admits and refuses.

Pure: numbers and times go in, bounds come out. Nothing here reads a clock, waits, or knows a service.
`penstock.llm.discovery` puts the estimates together for an endpoint.

    server_estimate  one limit, as answers tell it
    charge_factor    what the server charges for each unit that we estimate
    returns          how a limit refills if answers say too little;  sliding_window: where it slides
    pace             a limit that no answer shows;  hidden_window: where it is a window
    places           how many requests it works on at once
    stated_limit     what one answer states of one limit
    traffic          the client's side: what was sent of one unit, and when
"""
