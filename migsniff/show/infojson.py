"""`migsniff info -T json`: the model of a migration as one JSON object."""

from collections.abc import Mapping

import msgspec

from migsniff.show.migration import MigrationStats
from migsniff.show.model import DeviceStats, PassStats


def info_dict(stats: MigrationStats, facts: Mapping[str, object]) -> dict[str, object]:
    """Everything, ready for JSON, `facts` under "source_facts"; times in seconds."""
    downtime = stats.downtime
    bytes_by_channel: dict[str, dict[str, int]] = {}
    for (channel, direction), count in list(stats.bytes.items()):
        bytes_by_channel.setdefault(channel, {})[direction] = count
    return {
        "source_facts": dict(facts),
        "migration": stats.migration,
        "source": stats.source,
        "destination": stats.destination,
        "phase": stats.phase,
        "elapsed": stats.elapsed / 1e6,
        "bytes": bytes_by_channel,
        "throughput_mean": stats.mean_throughput,
        "machine": stats.configuration.machine if stats.configuration else None,
        "capabilities": list(stats.configuration.capabilities or ()) if stats.configuration else [],
        "uuid": stats.configuration.uuid if stats.configuration else None,
        "page_size": stats.page_size,
        "page_size_from": stats.page_size_from,
        "ram": {
            "total": stats.ram_total,
            "pages": stats.pages,
            "sections": stats.ram_sections,
            "sent": msgspec.to_builtins(stats.counts),
            "blocks": [msgspec.to_builtins(block) for block in stats.largest_blocks()],
        },
        "multifd": stats.channels.to_dict(),
        "live_sections": dict(stats.live_sections),
        "passes": stats.passes,
        "iterations": [_pass(row) for row in stats.all_passes()],
        "devices": {
            "count": stats.devices,
            "exact": stats.exact_devices,
            "assumed": stats.assumed_devices,
            "bytes": stats.device_bytes,
            "largest": [_device(device) for device in sorted(stats.largest_devices, reverse=True)],
            "last": [_device(device) for device in list(stats.last_devices)],
        },
        "switchover": _in_seconds(stats.switchover) if stats.elapsed else None,
        "downtime": None if downtime is None else {"seconds": downtime[0] / 1e6, "until": downtime[1]},
        "tls": {
            f"{channel} {direction}": msgspec.to_builtins(tls)
            for (channel, direction), tls in list(stats.tls.items())
        },
        "postcopy": stats.postcopy,
        "discarded_pages": stats.discarded,
        "page_faults": stats.faults.to_dict(),
        "recoveries": stats.recovery.to_dict(),
        "return_path": {
            "messages": dict(stats.messages),
            "last": [
                {"time": message.time / 1e6, "name": message.name, "value": message.value}
                for message in list(stats.last_messages)
            ],
        },
        "findings": [msgspec.to_builtins(finding) for finding in list(stats.findings)],
        "findings_omitted": stats.findings_omitted,
        "drained": {
            channel: {"offset": begun.offset, "bytes": stats.drained_bytes(channel)}
            for channel, begun in list(stats.drained.items())
        },
        "ends": [msgspec.to_builtins(end) for end in list(stats.ends)],
        "verdict": None if stats.verdict is None else msgspec.to_builtins(stats.verdict),
    }


def _in_seconds(microseconds: int | None) -> float | None:
    return None if microseconds is None else microseconds / 1e6


def _pass(row: PassStats) -> dict[str, object]:
    return {
        "iteration": row.iteration,
        "began": _in_seconds(row.began),
        "duration": _in_seconds(row.duration),
        "pages": row.counts.pages,
        **msgspec.to_builtins(row.counts),
        "dirty_rate": row.dirty_rate,
        "remaining": row.remaining,
        "final": row.final,
        "running": row.running,
    }


def _device(device: DeviceStats) -> dict[str, object]:
    return {
        "name": device.name,
        "size": device.size,
        "time": device.time / 1e6,
        "since_previous": _in_seconds(device.since),
    }
