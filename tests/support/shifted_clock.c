/* Loaded before libc: the time of day is SHIFTED_CLOCK seconds ahead, every other clock is right.
   libfaketime does much more, and costs gRPC's threads ten times the CPU. */
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static long ahead;

__attribute__((constructor)) static void read_setting(void)
{
    const char *text = getenv("SHIFTED_CLOCK");
    ahead = text ? atol(text) : 0;
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    int result = syscall(SYS_clock_gettime, clock, now);
    if (result == 0 && clock == CLOCK_REALTIME)
        now->tv_sec += ahead;
    return result;
}
