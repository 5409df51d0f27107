"""What is wrong with the machines, in sentences that name them, from what ``preflight`` saw on each rank.

It needs the standard library only: the launch folder's preflight.py has it inside.
"""

import statistics

SLOW = {"cuda": 1.3, "cpu": 3.0}  # times the others' seconds for the same work; processor cores are shared
LINK = {"cuda": 0.5, "cpu": 0.2}  # of the other ranks' speed between machines; less is a slow link
SKEW = 5.0  # seconds between two machines' clocks
ENOUGH = 0.5  # of the bandwidth that the plan assumed
FAST_NETWORKS = ("infiniband", "efa", "roce")


def problems(facts, options):
    """One sentence for everything that is wrong, naming the machine.

    Args:
        facts: of each rank in order, as ``look`` returns them.
    """
    found = []
    hosts = [fact["host"] for fact in facts]
    for name in sorted({name for fact in facts for name in fact["versions"]}):
        values = [fact["versions"].get(name, "none") for fact in facts]
        usual = statistics.mode(values)
        odd = {host: value for host, value in zip(hosts, values, strict=True) if value != usual}
        found += [f"{host} has {name} {value}, the others {usual}" for host, value in odd.items()]
    middle = statistics.median_low(fact["clock"] for fact in facts)
    late = {fact["host"]: fact["clock"] - middle for fact in facts if abs(fact["clock"] - middle) > SKEW}
    found += [f"the clock of {host} is {lag:+.0f} s off" for host, lag in late.items()]
    for host in dict.fromkeys(hosts):
        found += of_machine(next(fact for fact in facts if fact["host"] == host), options)
    usual = statistics.median_low(fact["work"] for fact in facts)
    for rank, fact in enumerate(facts):
        if fact["work"] > SLOW[fact["device"]] * usual:
            found.append(
                f"rank {rank} on {fact['host']} is slow: {fact['work'] / usual:.1f} times the others' time for the "
                "same matrix products"
            )
    found += slow_links(facts)
    fastest = facts[0]["bandwidth"][str(max(map(int, facts[0]["bandwidth"])))]
    if options.expect and fastest < ENOUGH * options.expect:
        found.append(
            f"all-reduce reaches {fastest:.1f} GB/s from {hosts[0]} to {hosts[-1]}, and the plan assumes "
            f"{options.expect:g}"
        )
    return found


def slow_links(facts):
    """A rank is as fast as the better of its links, so that a slow neighbour does not count against it."""
    speeds = {rank: max(fact["links"].values()) for rank, fact in enumerate(facts) if fact.get("links")}
    if not speeds:
        return []
    usual = statistics.median_high(speeds.values())
    slow = [rank for rank, speed in speeds.items() if speed < LINK[facts[rank]["device"]] * usual]
    found = []
    for machine in dict.fromkeys(facts[rank]["machine"] for rank in slow):
        ranks = [rank for rank in slow if facts[rank]["machine"] == machine]
        whole = len(ranks) == sum(fact["machine"] == machine for fact in facts)
        who = "" if whole else f", rank{'s'[: len(ranks) - 1]} {', '.join(map(str, ranks))},"
        place, slowest = f"machine {machine}, {facts[ranks[0]]['host']}{who}", min(speeds[rank] for rank in ranks)
        found.append(f"{place} has a slow link: {slowest:.2f} GB/s with its neighbours, usual is {usual:.2f}")
    return found


def of_machine(fact, options):
    host, found = fact["host"], []
    if options.gpus and fact["gpus"] is not None and fact["gpus"] != options.gpus:
        found.append(f"{host} shows {fact['gpus']} GPUs, {options.gpus} were asked for")
    if fact["disk"] is None:
        found.append(f"{host} cannot write to {options.output_dir}")
    elif fact["disk"] < options.disk:
        found.append(
            f"{host} has {fact['disk']:.0f} GB free for {options.output_dir}, the checkpoints need {options.disk:.0f}"
        )
    if options.network in FAST_NETWORKS and fact["transport"]["network"] == "Socket":
        devices = ", ".join(fact["transport"]["devices"]) or "an unnamed interface"
        found.append(f"{host} talks over sockets ({devices}), {options.network} was asked for")
    return found
