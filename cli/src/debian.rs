// SPDX-License-Identifier: MIT OR Apache-2.0
//! Guests that Debian ships: its arm64 cloud kernel with a busybox initramfs, and U-Boot. Fetched once, then cached.

use crate::apt::{Apt, find};
use crate::cpio::Archive;
use crate::modules::{Module, with_all_they_need};
use crate::place;
use crate::progress::Progress;
use crate::status::{Doing, Failure};
use flate2::read::GzDecoder;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

/// What the initramfs runs: it shows that the kernel is up, and ends. With `trellis.shell` on the kernel's command line it
/// gives whoever sits at the console a shell before that. `alarm=2` sets the first clock's alarm so many seconds off and
/// waits for it; `port=ttyAMA1` says hello through that port, reads 4096 bytes, sends them back, and reads a line.
/// Both say how many interrupts that made. `network=10.0.2.15` loads the modules, gives the first network card this address
/// and asks the emulator's `10.0.2.2` for an answer; `fetch=URL` fetches a file through it, and says its checksum and how many
/// interrupts that took; `random=8` also reads so many times 64 bytes from the second function's source of randomness.
const INIT: &str = "#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
uname -a
echo \"processors: $(grep -c ^processor /proc/cpuinfo)\"
if [ -n \"$churn\" ]; then
    wrong=0 pids=
    for seed in $(seq $churn); do churn ${rounds:-200} $seed & pids=\"$pids $!\"; done
    for pid in $pids; do wait $pid || wrong=1; done
    echo \"churn: $churn programs, wrong $wrong\"
fi
interrupts() {
    awk -v one=$1 'NR == 1 { last = NF + 1 } $NF == one || $1 == one \":\" { for (i = 2; i <= last; i++) sum += $i } END { print +sum }' \
        /proc/interrupts
}
if [ -n \"$alarm\" ]; then
    cd /sys/class/rtc/rtc0
    echo \"clock: $(cat name)\"
    before=$(interrupts rtc-pl031)
    echo $(($(cat since_epoch) + alarm)) >wakealarm
    for second in $(seq 100); do [ -n \"$(cat wakealarm)\" ] || break; sleep 1; done
    echo \"clock: alarm ${second}, interrupts $(($(interrupts rtc-pl031) - before))\"
    cd /
fi
if [ -n \"$port\" ]; then
    exec 3<>/dev/$port
    stty raw -echo <&3
    irq=$(cat /sys/class/tty/$port/irq)
    before=$(interrupts $irq)
    echo 'hello from linux' >&3
    head -c 4096 <&3 >/block
    cat /block >&3
    read -r words <&3
    echo \"port: $words, interrupts $(($(interrupts $irq) - before))\"
    exec 3>&-
fi
if [ -n \"$network\" ]; then
    for module in $(cat /lib/modules/order); do insmod /lib/modules/$module.ko; done
    ifconfig eth0 $network netmask 255.255.255.0 up
    function=$(readlink -f /sys/class/net/eth0/device/..)
    driver=$(readlink -f /sys/class/net/eth0/device/driver)
    echo \"network: eth0 by ${driver##*/} of ${function##*/}, $(cat $function/msi_irqs/* | sort | uniq -c | xargs) messages\"
    echo \"network: $(ping -q -A -c 3 10.0.2.2 | grep received)\"
    if [ -n \"$fetch\" ]; then
        before=$(interrupts virtio0-input.0)
        timeout 200 wget -q -O /fetched $fetch
        sum=$(sha256sum </fetched)
        echo \"fetched: $(wc -c </fetched) bytes, sha256 ${sum%% *}, interrupts $(($(interrupts virtio0-input.0) - before))\"
    fi
    if [ -n \"$random\" ]; then
        before=$(interrupts virtio1-input)
        bytes=$(dd if=/dev/hwrng bs=64 count=$random 2>/dev/null | wc -c)
        echo \"random: $bytes bytes from $(cat /sys/class/misc/hw_random/rng_current), interrupts $(($(interrupts virtio1-input) - before))\"
    fi
fi
echo 'trellis: linux is up'
read -r words </proc/cmdline
case \" $words \" in *' trellis.shell '*) setsid cttyhack sh ;; esac
poweroff -f
";

/// The archive of modules in the cache.
const MODULES: &str = "linux-drivers.cpio";
/// Drivers that the initramfs with a network loads.
const DRIVERS: [&str; 3] = ["virtio_pci", "virtio_net", "virtio_rng"];

/// Files of a Linux guest.
#[derive(Clone, Debug)]
pub struct Linux {
    /// The kernel, an arm64 Image.
    pub kernel: PathBuf,
    /// The initramfs.
    pub initramfs: PathBuf,
}

/// Debian's arm64 cloud kernel and an initramfs that prints a few lines and powers off.
pub fn linux() -> Result<Linux, Failure> {
    let folder = place::cache()?.join("guests");
    let files = Linux { kernel: folder.join("linux.Image"), initramfs: folder.join("linux.cpio") };
    if !files.kernel.is_file() {
        fetch_kernel(&folder)?;
    }
    let busybox = folder.join("busybox");
    if !busybox.is_file() {
        let unpack = |apt: &Apt, _: &mut Progress| Ok([read(&apt.unpack("busybox-static")?.join("bin/busybox"))?]);
        fetch("Debian's arm64 busybox", [&busybox], unpack)?;
    }
    // Cheap, and never older than this tool.
    write(&files.initramfs, &initramfs(&read(&busybox)?))?;
    Ok(files)
}

/// The kernel and its modules: a module fits the kernel that it was built with, and no other.
fn fetch_kernel(folder: &Path) -> Result<(), Failure> {
    fetch("Debian's arm64 kernel", [&folder.join("linux.Image"), &folder.join(MODULES)], |apt, progress| {
        let package = apt.dependency("linux-image-cloud-arm64", "linux-image-")?;
        progress.step(&package);
        let unpacked = apt.unpack(&package)?;
        let kernel = image(&read(&find(&unpacked.join("boot"), |name| name.starts_with("vmlinuz-"))?)?)?;
        Ok([kernel, archived(&with_all_they_need(&unpacked.join("lib/modules"), &DRIVERS)?)])
    })
}

/// An archive of modules, and their names in the order in which they are to be loaded.
fn archived(modules: &[Module]) -> Vec<u8> {
    let folders = ["lib", "lib/modules"];
    let archive = folders.iter().fold(Archive::default(), |archive, folder| archive.directory(folder));
    let order: String = modules.iter().map(|module| format!("{}\n", module.name)).collect();
    let add = |archive: Archive, module: &Module| archive.file(&format!("lib/modules/{}.ko", module.name), &module.bytes);
    modules.iter().fold(archive, add).file("lib/modules/order", order.as_bytes()).finish()
}

/// The initramfs with the modules of a network card's drivers.
pub fn network_initramfs() -> Result<PathBuf, Failure> {
    linux()?;
    let folder = place::cache()?.join("guests");
    let (modules, file) = (folder.join(MODULES), folder.join("linux-network.cpio"));
    if !modules.is_file() {
        fetch_kernel(&folder)?;
    }
    // Archives may follow each other (Linux, Documentation/driver-api/early-userspace/buffer-format.rst).
    let archives = [initramfs(&read(&folder.join("busybox"))?), read(&modules)?].concat();
    write(&file, &archives)?;
    Ok(file)
}

/// The same initramfs with a program of ours, which runs in as many copies as the kernel's command line says: `churn=3`.
pub fn churn_initramfs(program: &Path) -> Result<PathBuf, Failure> {
    linux()?;
    let folder = place::cache()?.join("guests");
    let file = folder.join("linux-churn.cpio");
    let archive = contents(&read(&folder.join("busybox"))?).program("bin/churn", &read(program)?);
    write(&file, &archive.finish())?;
    Ok(file)
}

/// Debian's U-Boot for QEMU's arm64 virt.
pub fn u_boot() -> Result<PathBuf, Failure> {
    let file = place::cache()?.join("guests/u-boot.bin");
    if !file.is_file() {
        let unpack = |apt: &Apt, _: &mut Progress| Ok([read(&apt.unpack("u-boot-qemu")?.join("usr/lib/u-boot/qemu_arm64/u-boot.bin"))?]);
        fetch("Debian's U-Boot", [&file], unpack)?;
    }
    Ok(file)
}

/// Makes files of the cache out of packages; they belong together.
fn fetch<const N: usize>(
    what: &str,
    files: [&PathBuf; N],
    make: impl FnOnce(&Apt, &mut Progress) -> Result<[Vec<u8>; N], Failure>,
) -> Result<(), Failure> {
    // Two runs at once: the second waits, and then finds what the first has fetched.
    let lock = place::cache()?.join("lock");
    let lock = fs::File::create(&lock).doing(|| format!("create {}", lock.display()))?;
    lock.lock().doing(|| "lock the cache".into())?;
    if files.iter().all(|file| file.is_file()) {
        return Ok(());
    }
    eprintln!("trellis| fetching {what} from Debian's archive into {} (once; nothing is installed)", place::cache()?.display());
    let mut progress = Progress::of(format!("fetching {what}"));
    let apt = Apt::new(&place::cache()?.join("apt"))?;
    progress.step("packages");
    let made = make(&apt, &mut progress)?;
    apt.clean();
    // Whoever is interrupted in between leaves the last ones missing, and they are all fetched again.
    files.iter().skip(1).for_each(|file| drop(fs::remove_file(file)));
    files.iter().zip(&made).try_for_each(|(file, bytes)| write(file, bytes))
}

/// An arm64 Image out of what distributions call vmlinuz: the Image itself, the same compressed, or an EFI program
/// that carries it compressed (Linux, `drivers/firmware/efi/libstub/zboot-header.S`).
fn image(file: &[u8]) -> Result<Vec<u8>, Failure> {
    if file.get(4..8) == Some(b"zimg") {
        let word = |at: usize| Some(u32::from_le_bytes(*file.get(at..)?.first_chunk()?) as usize);
        let payload = word(8).zip(word(12)).and_then(|(offset, length)| file.get(offset..offset.checked_add(length)?));
        return image(payload.ok_or_else(|| Failure::says("the kernel package holds a broken EFI program"))?);
    }
    if file.starts_with(&[0x1f, 0x8b]) {
        let mut plain = Vec::new();
        GzDecoder::new(file).read_to_end(&mut plain).doing(|| "decompress the kernel".into())?;
        return image(&plain);
    }
    if file.get(56..60) == Some(b"ARM\x64") {
        return Ok(file.to_vec());
    }
    Err(Failure::says("the kernel package holds a kernel in a format that this tool does not know"))
}

fn initramfs(busybox: &[u8]) -> Vec<u8> {
    contents(busybox).finish()
}

fn contents(busybox: &[u8]) -> Archive {
    let folders = ["bin", "dev", "proc", "sys"];
    let archive = folders.iter().fold(Archive::default(), |archive, folder| archive.directory(folder));
    let archive = archive.program("bin/busybox", busybox).program("init", INIT.as_bytes());
    archive.character_device("dev/console", 5, 1)
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    fs::read(path).doing(|| format!("read {}", path.display()))
}

/// Writes a file whole or not at all: an interrupted run must not leave half a kernel in the cache.
fn write(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).doing(|| format!("create {}", folder.display()))?;
    let file = tempfile::NamedTempFile::new_in(folder).doing(|| format!("write in {}", folder.display()))?;
    fs::write(file.path(), bytes).doing(|| format!("write {}", path.display()))?;
    file.persist(path).map_err(|error| error.error).doing(|| format!("write {}", path.display()))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::{Compression, write::GzEncoder};
    use std::io::Write;

    fn plain() -> Vec<u8> {
        let mut image = vec![0; 64];
        image[56..60].copy_from_slice(b"ARM\x64");
        image
    }

    #[test]
    fn a_kernel_is_found_in_every_wrapping() {
        let mut packer = GzEncoder::new(Vec::new(), Compression::fast());
        packer.write_all(&plain()).expect("writing to memory");
        let packed = packer.finish().expect("writing to memory");
        let mut program = b"MZ\0\0zimg".to_vec();
        program.extend(64u32.to_le_bytes());
        program.extend((packed.len() as u32).to_le_bytes());
        program.resize(64, 0);
        program.extend(&packed);
        for file in [plain(), packed, program] {
            assert_eq!(image(&file).expect("a kernel"), plain());
        }
    }

    #[test]
    fn what_is_no_kernel_is_refused() {
        let program = [b"MZ\0\0zimg".as_slice(), &[0xff; 8]].concat();
        for file in [b"".as_slice(), b"MZ", &[0x1f, 0x8b, 8], &program] {
            assert!(image(file).is_err());
        }
    }
}
