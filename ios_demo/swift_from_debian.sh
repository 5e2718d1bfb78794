#!/bin/sh
# A Swift compiler for Debian 12: the one of Debian 13 (package swiftlang), in a root of its own. Needs root, debootstrap,
# 500 MB of downloads and 3 GB of disk.
#
#     ios_demo/swift_from_debian.sh FOLDER && PATH=FOLDER/bin:$PATH make swift
set -eu
folder=$(realpath -m "$1")
repository=$(cd "$(dirname "$0")/.." && pwd)
root=$folder/root

if [ ! -L "$root/usr/bin/swift" ]; then  # a link that only leads somewhere within the root
    debootstrap --variant=minbase trixie "$root"
    chroot "$root" apt-get update
    chroot "$root" apt-get install -y --no-install-recommends swiftlang swiftlang-dev libc6-dev libstdc++-14-dev git \
        libsqlite3-dev
fi

# The root sees the repository under its own path, and nothing else of this machine.
mkdir -p "$root$repository" "$folder/bin"
mountpoint -q "$root$repository" || mount --bind "$repository" "$root$repository"
mountpoint -q "$root/proc" || mount -t proc proc "$root/proc"
for program in swift swiftc; do
    cat >"$folder/bin/$program" <<END
#!/bin/sh
exec chroot "$root" /usr/bin/env -C "\$PWD" HOME=/root POCKETLM_BUNDLE="\${POCKETLM_BUNDLE:-}" /usr/bin/$program "\$@"
END
    chmod +x "$folder/bin/$program"
done
"$folder/bin/swift" --version
