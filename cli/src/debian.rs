// SPDX-License-Identifier: MIT OR Apache-2.0
//! Guests that Debian ships: its arm64 cloud kernel with a busybox initramfs, and U-Boot. Fetched once, then cached.

use crate::apt::{Apt, find};
use crate::cpio::Archive;
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
/// Both say how many interrupts that made.
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
echo 'trellis: linux is up'
read -r words </proc/cmdline
case \" $words \" in *' trellis.shell '*) setsid cttyhack sh ;; esac
poweroff -f
";

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
        fetch("Debian's arm64 kernel", &files.kernel, |apt, progress| {
            let package = apt.dependency("linux-image-cloud-arm64", "linux-image-")?;
            progress.step(&package);
            let boot = apt.unpack(&package)?.join("boot");
            image(&read(&find(&boot, |name| name.starts_with("vmlinuz-"))?)?)
        })?;
    }
    let busybox = folder.join("busybox");
    if !busybox.is_file() {
        fetch("Debian's arm64 busybox", &busybox, |apt, _| read(&apt.unpack("busybox-static")?.join("bin/busybox")))?;
    }
    // Cheap, and never older than this tool.
    write(&files.initramfs, &initramfs(&read(&busybox)?))?;
    Ok(files)
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
        fetch("Debian's U-Boot", &file, |apt, _| read(&apt.unpack("u-boot-qemu")?.join("usr/lib/u-boot/qemu_arm64/u-boot.bin")))?;
    }
    Ok(file)
}

/// Makes one file of the cache out of packages.
fn fetch(
    what: &str,
    file: &Path,
    make: impl FnOnce(&Apt, &mut Progress) -> Result<Vec<u8>, Failure>,
) -> Result<(), Failure> {
    // Two runs at once: the second waits, and then finds what the first has fetched.
    let lock = place::cache()?.join("lock");
    let lock = fs::File::create(&lock).doing(|| format!("create {}", lock.display()))?;
    lock.lock().doing(|| "lock the cache".into())?;
    if file.is_file() {
        return Ok(());
    }
    eprintln!("trellis| fetching {what} from Debian's archive into {} (once; nothing is installed)", file.display());
    let mut progress = Progress::of(format!("fetching {what}"));
    let apt = Apt::new(&place::cache()?.join("apt"))?;
    progress.step("packages");
    let bytes = make(&apt, &mut progress)?;
    apt.clean();
    write(file, &bytes)
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
