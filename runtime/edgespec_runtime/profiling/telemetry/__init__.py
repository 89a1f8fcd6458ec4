"""Power, temperature and clocks, read from what the platform offers; absent where it offers none.

reading     one moment's figures, and which rails make up the total
tegrastats  NVIDIA Jetson's own tool, line by line
sysfs       the kernel's files: INA3221 rails, RAPL, thermal zones, cpufreq, devfreq
powermode   nvpmodel's mode, or the cpufreq governor
sampler     a thread that takes readings while something else runs
summary     readings to figures
"""
