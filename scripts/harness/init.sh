#!/bin/busybox sh
# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=dash
# shellcheck disable=SC2086 # $enter is a command and its words
#
# The first program of a machine: mounts what there is, then runs the commands
# that come through a virtio port, one a line in base64, and answers each with
# "EXITCODE BYTES", a newline and the output.

busybox mkdir -p /proc /sys /dev /tmp /host /lower /upper
busybox mount -t proc proc /proc
busybox --install -s /bin
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/tmp TERM=linux
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev 2> /dev/null
mount -t tmpfs tmp /tmp
mount -t debugfs debug /sys/kernel/debug 2> /dev/null
mount -t tracefs tracing /sys/kernel/tracing 2> /dev/null

enter=
if grep -q physdma.host_files /proc/cmdline; then
	# The host's files, below a layer that takes what is written.
	mount -t 9p -o trans=virtio,version=9p2000.L,ro,cache=loose,msize=512000 host /lower
	mount -t tmpfs upper /upper
	mkdir /upper/files /upper/work
	mount -t overlay -o lowerdir=/lower,upperdir=/upper/files,workdir=/upper/work overlay /host
	for dir in proc sys dev; do mount --rbind /$dir /host/$dir; done
	for dir in tmp run mnt; do mount -t tmpfs $dir /host/$dir; done
	# What is hidden by these is still to be seen here.
	mkdir /host/run/host
	mount --bind /lower /host/run/host
	mkdir -p /host/modules
	mount --bind /modules /host/modules
	cp /bin/p2pcp /bin/physdmactl /host/usr/local/bin
	enter='chroot /host /usr/bin/env'
fi

if grep -q physdma.shell /proc/cmdline; then
	cat <<- 'END'

		The modules are in /modules and need each other in no way but nvme, which
		needs nvme-core. For example:

		    insmod /modules/rnvme.ko && lsblk
		    insmod /modules/physdma.ko; insmod /modules/physdma_ivshmem.ko
		    physdmactl providers; physdmactl routes
		    p2pcp -v -s 8M /dev/rnvme0n1 0000:03:00.0/2 /dev/rnvme1n1

		exit or Ctrl-A x ends the machine.

	END
	setsid cttyhack $enter sh
	poweroff -f
fi

until port=$(ls /dev/vport*p1); do sleep 0.1; done 2> /dev/null
exec 3<> "$port"
echo ready >&3
while read -r line <&3; do
	echo "$line" | base64 -d > /tmp/command
	$enter sh -c "$(cat /tmp/command)" > /tmp/output 2>&1 < /dev/null 3>&-
	echo "$? $(wc -c < /tmp/output)" >&3
	cat /tmp/output >&3
done
poweroff -f
