// Package kernel finds the kernel a machine boots, gets one where there is none, and reads what is in it: the modules
// in the order they are loaded, and the ELF file that a VMM can enter directly.
//
// A folder of kernels, here called dir, belongs to one user and holds
//
//	VERSION/vmlinuz      a kernel
//	VERSION/modules/     its modules, as /lib/modules/VERSION has them
//	default              a symbolic link to the VERSION that is used unless another is asked for
//	elf/NAME             kernels unpacked by Vmlinux
//
// Everything in it is written aside and renamed into place, so processes may use it at the same time.
package kernel
