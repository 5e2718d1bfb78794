"""pymobiledevice3 (an extra, GPL-3.0): what talks to iPhones, as the functions that ``device_ios`` asks for.

Starting an app needs Developer Mode on the iPhone and, from iOS 17 on, a tunnel; the library's runs in this process and
needs no root. No iPhone was at hand when this was written: it was checked against the library's signatures only.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from .device_ios import Documents, Services, ios

# By the name of the library's exception: what a person can do.
HINTS = {
    "NotTrustedError": "unlock the iPhone and trust this computer",
    "NotPairedError": "unlock the iPhone and trust this computer",
    "PairingDialogResponsePendingError": "unlock the iPhone and trust this computer, then try again",
    "UserDeniedPairingError": "the iPhone does not trust this computer; connect it again and choose Trust",
    "PasswordRequiredError": "unlock the iPhone and try again",
    "PasscodeRequiredError": "unlock the iPhone and try again",
    "NoDeviceConnectedError": "no iPhone is connected; connect it with a cable",
    "DeviceNotFoundError": "the iPhone is not connected any more; connect it with a cable",
    "ConnectionTerminatedError": "the connection to the iPhone broke; connect it and run the command again",
    "AppNotInstalledError": "the app is not on the iPhone; install it first",
    "AppInstallError": "the iPhone refused the app; sign it for this iPhone, see ios_demo/README.md",
    "DeveloperModeIsNotEnabledError": "switch on Developer Mode (Settings, Privacy & Security) to start apps from here",
    "InvalidServiceError": "the iPhone has no such service; switch on Developer Mode, open the app once in Xcode",
}


def services() -> Services | None:
    """The library's services; None if it is not installed."""
    try:
        from pymobiledevice3.exceptions import ConnectionFailedToUsbmuxdError, PyMobileDevice3Exception
        from pymobiledevice3.lockdown import create_using_usbmux
        from pymobiledevice3.remote.userspace_tunnel import UserspaceRsdTunnel
        from pymobiledevice3.services.dvt.instruments.dvt_provider import DvtProvider
        from pymobiledevice3.services.dvt.instruments.process_control import ProcessControl
        from pymobiledevice3.services.house_arrest import HouseArrestService
        from pymobiledevice3.services.installation_proxy import InstallationProxyService
        from pymobiledevice3.usbmux import list_devices
    except ImportError:
        return None

    async def serials() -> Sequence[str]:
        try:
            return list(dict.fromkeys(device.serial for device in await list_devices()))
        except ConnectionFailedToUsbmuxdError:
            return []  # without usbmuxd there are no iPhones, and there may be other phones

    async def values(serial: str) -> Mapping[str, Any]:
        async with await create_using_usbmux(serial=serial) as lockdown:
            found: Mapping[str, Any] = lockdown.all_values
            return found

    @asynccontextmanager
    async def documents(serial: str, app: str) -> AsyncIterator[Documents]:
        async with (
            await create_using_usbmux(serial=serial) as lockdown,
            await HouseArrestService.create(lockdown, app, documents_only=True) as house,
        ):
            yield house

    async def install(serial: str, ipa: Path) -> None:
        async with (
            await create_using_usbmux(serial=serial) as lockdown,
            InstallationProxyService(lockdown) as installer,
        ):
            await installer.install_from_local(ipa, developer=True)

    async def launch(serial: str, app: str, arguments: Sequence[str]) -> int:
        async with (
            UserspaceRsdTunnel(serial=serial) as tunnel,
            DvtProvider(tunnel) as provider,
            ProcessControl(provider) as control,
        ):
            return int(await control.launch(bundle_id=app, arguments=list(arguments), kill_existing=True))

    def hint(error: Exception) -> str | None:
        if not isinstance(error, PyMobileDevice3Exception | OSError):
            return None
        known = (HINTS[kind.__name__] for kind in type(error).__mro__ if kind.__name__ in HINTS)
        said = " ".join(str(error).split()) or type(error).__name__
        return next(known, f"the iPhone did not answer as expected ({said})")

    return Services(serials, values, documents, install, launch, hint)


IOS = ios(services)
